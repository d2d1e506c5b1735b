"""The network: masks, normalisation, inputs, encoder, checkpoint, embedding, stream."""
