"""Plain data that is handed about: claims, decisions, plans, reports, and how they print. Nothing here decides or reads."""
