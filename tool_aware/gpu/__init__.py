"""What runs on the card: reading the driver, recording what it says, estimating how much memory training takes."""
