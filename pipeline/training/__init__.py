"""Token ids to weights: fits the LSTM and the linear branches with PyTorch and scikit-learn, and evaluates them."""
