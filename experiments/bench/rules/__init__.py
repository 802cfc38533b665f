"""Rules of other papers for which channels go and what makes up for them."""
