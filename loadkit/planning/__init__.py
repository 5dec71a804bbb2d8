"""From a request and facts to a plan: the stages in their order, and every problem at once."""
