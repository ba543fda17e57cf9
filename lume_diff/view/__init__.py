"""A live view of models and servers in the browser; the package panel is needed when it is used."""
