// Package origin has the rules about scheme, host and port of a URL: which
// URLs a secret may be sent to, and when two URLs are of one server.
//
//	if !origin.IsSecure(u) || origin.Of(u) != pinned {
package origin

import (
	"net/netip"
	"net/url"
	"strings"
)

// IsLoopback reports whether a host, as [url.URL.Hostname] returns it, is this
// machine: "localhost" in any case, or a loopback address. A name that merely
// resolves to one is not.
func IsLoopback(host string) bool {
	if strings.EqualFold(host, "localhost") {
		return true
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// IsSecure reports whether a secret sent to u is safe from the network: u is
// https, or it is http and does not leave the machine. The scheme is in lower
// case, as url.Parse returns it.
func IsSecure(u *url.URL) bool {
	return u.Scheme == "https" || u.Scheme == "http" && IsLoopback(u.Hostname())
}

// Of returns the origin of u (RFC 6454 section 4) in the form in which two
// origins compare as strings. The scheme is in lower case, as url.Parse returns
// it. Of checks nothing; see [Host].
func Of(u *url.URL) string { return u.Scheme + "://" + Host(u.Scheme, u.Host) }

// Host returns a host with its port, if any, in the form in which two hosts
// compare as strings: in lower case, and without the port that the scheme has
// anyway. It checks nothing: an empty port stays, and so does a port with a
// leading zero.
func Host(scheme, host string) string {
	host = strings.ToLower(host)
	switch scheme {
	case "https":
		return strings.TrimSuffix(host, ":443")
	case "http":
		return strings.TrimSuffix(host, ":80")
	}
	return host
}
