"""What the wavefront engine is made of: how tokens are laid out, which rows there are, and how one layer is called."""
