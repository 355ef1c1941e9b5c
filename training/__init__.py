"""Trains the bundled voice: data from the teacher, then tokenizer, language model, flow and vocoder."""
