"""What two scripts must agree on exactly: feeds, book, files, windows, normalisation, encoder, checkpoints."""
