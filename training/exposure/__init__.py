"""How often, and how similarly, benchmark items stand in the text of sources."""
