package dpop

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/taskcred/taskcred/internal/origin"
)

// target returns the htu of a request to u (RFC 9449 section 4.2): no query and
// no fragment, normalised by scheme and host (RFC 3986 sections 6.2.2.1 and
// 6.2.3). The path is as net/http sends it: a server that compares byte by byte
// must find what it was sent.
func target(u *url.URL) (string, error) {
	at, err := originOf(u)
	if err != nil {
		return "", err
	}
	path := u.EscapedPath()
	switch {
	case path == "":
		path = "/"
	case path[0] != '/':
		return "", fmt.Errorf("dpop: the URL's path does not begin with %q", "/")
	}
	return at + path, nil
}

// originOf returns scheme, host and port of u in the one form in which origins are
// compared: lower case, and without the scheme's own port. What it returns needs
// no escaping in JSON.
func originOf(u *url.URL) (string, error) {
	if u == nil {
		return "", errors.New("dpop: there is no URL")
	}
	scheme := strings.ToLower(u.Scheme)
	if scheme != "https" && scheme != "http" {
		return "", errors.New("dpop: the URL's scheme is neither https nor http")
	}
	if u.Opaque != "" {
		return "", errors.New("dpop: the URL is opaque; it must have a host and a path of its own")
	}
	if err := checkHost(u); err != nil {
		return "", err
	}
	if port := u.Port(); port != "" {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return "", errors.New("dpop: the URL's port is not a number from 1 to 65535")
		}
	}
	return scheme + "://" + origin.Host(scheme, strings.TrimSuffix(u.Host, ":")), nil // an empty port is none
}

func checkHost(u *url.URL) error {
	name := u.Hostname()
	if strings.HasPrefix(u.Host, "[") {
		if a, err := netip.ParseAddr(name); err != nil || !a.Is6() || a.Zone() != "" {
			return errors.New("dpop: the URL's host is in brackets, and no IPv6 address without a zone")
		}
		return nil
	}
	if name == "" {
		return errors.New("dpop: the URL has no host")
	}
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 0x80:
			// What net/http makes of it is for a table that this package does not have.
			return errors.New("dpop: the URL's host is not ASCII; write an internationalised name in its xn-- form")
		case !isAlnum(c) && c != '-' && c != '.' && c != '_':
			return fmt.Errorf("dpop: the URL's host holds %q; letters, digits, '-', '.' and '_' are accepted", c)
		}
	}
	return nil
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}
