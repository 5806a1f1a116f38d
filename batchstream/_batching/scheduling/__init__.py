"""What is decided with the lock held: which worker gets which batch."""
