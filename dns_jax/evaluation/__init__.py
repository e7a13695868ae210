"""Section IV-B: what the scores are worth, and the tables, figures and files that say so."""
