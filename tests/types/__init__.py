"""All of PostgreSQL's types, there and back."""
