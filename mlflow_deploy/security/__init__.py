"""What keeps models secret and harmless: sealing (encryption) with its keys, and what a pickle would import."""
