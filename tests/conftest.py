"""What all tests share."""
import torch

# The tensors of the tests are far too small to be worth two threads.
torch.set_num_threads(1)
