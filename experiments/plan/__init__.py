"""Plans a run before its hardware is rented: compiles the programs of a preset for a topology of chips."""
