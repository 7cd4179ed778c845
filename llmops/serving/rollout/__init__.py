"""Where a request goes besides to its name's champion, and what is watched while it does."""
