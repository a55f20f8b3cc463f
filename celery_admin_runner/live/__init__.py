"""State for the people who wait: a user's own runs, by polling or by websocket."""
