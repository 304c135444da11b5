"""One program in six frameworks: an encoder, three heads, labels that are missing."""
