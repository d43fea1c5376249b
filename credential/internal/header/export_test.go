package header

// Canonical is the name of a header that a server may see.
var Canonical = canonical
