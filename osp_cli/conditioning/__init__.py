"""What the transformer attends to: `encoder_hidden_states` from prompt and picture."""
