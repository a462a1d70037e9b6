"""HDF5, Keras and netCDF 4: parsed in a child process, decoded here."""
