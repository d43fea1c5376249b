// Package cnf reads what a token is bound to, from its "cnf" (RFC 7800 section
// 3.1). Callers read that JSON object in ways of their own:
//
//	method, thumbprint := cnf.Read(len(object), object.Text)
package cnf

// The methods that are known.
const (
	Key         = "jkt"      // a DPoP key (RFC 9449 section 6.1)
	Certificate = "x5t#S256" // a certificate (RFC 8705 section 3.1)
	Unknown     = "unknown"
)

// Read reads a "cnf" with so many members. text returns the string of a name; ok
// is false when there is a value that is not a string. A token is bound by one
// method: where the object has no member or several, the method is [Unknown],
// because we could not prove all of it.
func Read(members int, text func(name string) (s string, ok bool)) (method, thumbprint string) {
	for _, method := range [...]string{Key, Certificate} {
		if s, ok := text(method); ok && s != "" && members == 1 {
			return method, s
		}
	}
	return Unknown, ""
}
