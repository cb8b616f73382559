"""What the model families share: the device, linear layers and their C kernels, draws."""
