"""What `muscaling COMMAND` does, one module a command; each parses its own flags."""
