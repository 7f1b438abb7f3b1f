"""Split mode: one network cut into stages that live on different peers, who pass activations and gradients."""
