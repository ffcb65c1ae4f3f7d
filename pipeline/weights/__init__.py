"""What the weights files of a checkpoint and of an adapter hold, from their headers; what the network needs of them."""
