package workload

import (
	"fmt"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// maxListed is how many SVIDs an error names.
const maxListed = 16

// choice says which of an agent's SVIDs is ours. The zero choice takes the
// only one there is.
type choice struct {
	id   spiffeid.ID // zero means any
	hint string      // empty means any
}

// severalError refuses to guess. "The first one" is not a choice: SPIRE
// promises no order.
type severalError struct{ svids []*x509svid.SVID }

func (e *severalError) Error() string {
	return fmt.Sprintf("the agent gives %d SVIDs; set Options.ID or Options.Hint to choose one: %s", len(e.svids), list(e.svids))
}

// of returns the SVID that c chooses.
func (c choice) of(svids []*x509svid.SVID) (*x509svid.SVID, error) {
	if c == (choice{}) && len(svids) > 1 {
		return nil, &severalError{svids}
	}
	for _, s := range svids {
		if (c.id.IsZero() || c.id == s.ID) && (c.hint == "" || c.hint == s.Hint) {
			return s, nil
		}
	}
	return nil, fmt.Errorf("the agent does not give %s; it gives %s", c, list(svids))
}

func (c choice) String() string {
	switch {
	case c.id.IsZero():
		return fmt.Sprintf("an SVID with hint %q", c.hint)
	case c.hint == "":
		return c.id.String()
	default:
		return fmt.Sprintf("%s with hint %q", c.id, c.hint)
	}
}

// list names svids for an error, and no more than a few of them.
func list(svids []*x509svid.SVID) string {
	names := make([]string, 0, maxListed+1)
	for i, s := range svids {
		if i == maxListed {
			names = append(names, fmt.Sprintf("and %d more", len(svids)-i))
			break
		}
		names = append(names, fmt.Sprintf("%s (hint %q)", s.ID, s.Hint))
	}
	return strings.Join(names, ", ")
}
