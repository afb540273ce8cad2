"""Networks, by the name timm gives them."""
