"""Version 1 of the services' own protocol; every module here is generated from `protos/zipmoe/internal/v1`."""
