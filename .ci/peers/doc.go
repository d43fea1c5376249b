// Package peers holds taskcred against what other people wrote: how their
// printers and tracers see its values, and how their way to let many callers wait
// for one answer compares. It has tests and benchmarks only, and is a module of
// its own so that nobody who uses taskcred depends on what they need.
package peers
