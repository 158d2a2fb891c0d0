"""HTTP server, routes and fault injection of the local Qarnot."""
