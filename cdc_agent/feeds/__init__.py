"""Documents that live outside the database (GitHub, Notion), followed as if they were a table."""
