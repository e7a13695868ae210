"""Recordings: the data set as a table, its waveforms, and the batches drawn from them."""
