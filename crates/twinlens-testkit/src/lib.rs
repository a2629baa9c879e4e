//! A hostile web server, crash points and fixtures, for tests alone.
