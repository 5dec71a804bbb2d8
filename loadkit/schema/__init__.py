"""Plain data that is handed about: claims, decisions, plans, reports, and how they print."""
