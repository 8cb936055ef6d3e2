"""What the command line shows on a terminal while something goes on."""
