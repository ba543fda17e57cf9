"""Surrogates from elsewhere: files of lume-torch and lume-model, read without running what is in them."""
