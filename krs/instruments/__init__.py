"""Instruments that look for knowledge in a model, and models whose truth is known to test them on."""
