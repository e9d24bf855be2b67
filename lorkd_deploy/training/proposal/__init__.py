"""What `lorkd init` proposes: from the images, and from how fast this machine trains."""
