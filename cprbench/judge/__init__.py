"""Records -> what they say. Pure functions; the only place where gains and multiples are computed."""
