"""Images behind http(s) URLs: which may be asked for, from which addresses, and how far an answer is believed."""
