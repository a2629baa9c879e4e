//! A small untidy web site of real images, compiled in: the quickstart's public source.
