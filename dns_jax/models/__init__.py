"""The two networks: the autoencoder (a_G) and SerialOE (f_D)."""
