"""Looking at and measuring what models make."""
