//go:build unix

package apache

import (
	"os"
	"strings"
	"text/template"
)

// The configuration. The client's certificate is asked for in the first handshake,
// for all three locations: TLS 1.3 has no renegotiation, and Go's client does not
// authenticate afterwards. It is not demanded there, so that a call without one
// gets an answer.
//
// The audience is checked here since the module does not do it by itself. It also
// keeps what it has verified, for five minutes unless expiry says otherwise, and
// does not look at the time again: a token would outlive itself.
//
// The filter for server-side includes lets a file answer to POST, and say who
// called.
var config = template.Must(template.New("httpd.conf").Parse(`
ServerRoot "{{.Dir}}"
DefaultRuntimeDir "{{.Dir}}"
PidFile "{{.Dir}}/pid"
ErrorLog "{{.Dir}}/log"
LogLevel crit core:error oauth2:info
ServerName 127.0.0.1
Listen 127.0.0.1:{{.Port}}
Mutex pthread default
ServerLimit 1
ThreadsPerChild 16
MaxRequestWorkers 16

{{range .Modules -}}
LoadModule {{.}}_module {{$.ModuleDir}}/mod_{{.}}.so
{{end}}
SSLEngine on
SSLProtocol -all +TLSv1.2 +TLSv1.3
SSLCertificateFile "{{.Dir}}/cert.pem"
SSLCertificateKeyFile "{{.Dir}}/key.pem"
{{- if .Clients}}
SSLCACertificateFile "{{.Dir}}/clients.pem"
SSLVerifyClient optional
SSLVerifyDepth 4
SSLOptions +StdEnvVars +ExportCertData
{{- end}}

TypesConfig /dev/null
DocumentRoot "{{.Dir}}/files"
<Location "/">
  Require all denied
</Location>
{{range .Locations}}
<Location "/{{.Path}}">
  AuthType oauth2
  OAuth2AcceptTokenIn header name=Authorization&type={{.Scheme}}
  OAuth2TokenVerify jwks_uri {{$.KeysURL}} {{.Options}}
  Require oauth2_claim "aud:{{$.URL .Path}}"
  Options +Includes
  SetOutputFilter INCLUDES
</Location>
{{end}}`))

// modules are what the configuration needs, in the order to load them.
var modules = []string{"mpm_event", "authn_core", "authz_core", "include", "mime", "ssl", "oauth2"}

// location is one way to prove that a token is the caller's.
type location struct{ Path, Scheme, Options string }

var locations = []location{
	{"bearer", "Bearer", "expiry=1&verify.exp=required"},
	{"dpop", "DPoP", "expiry=1&verify.exp=required&type=dpop&dpop.iat.slack.before=60&dpop.iat.slack.after=60&dpop.expiry=120"},
	{"mtls", "Bearer", "expiry=1&verify.exp=required&type=mtls&mtls.policy=required"},
}

// write puts the configuration, and a file to serve at each location, into the
// server's folder.
func (s *Server) write() error {
	var text strings.Builder
	err := config.Execute(&text, struct {
		*Server
		KeysURL   string
		ModuleDir string
		Modules   []string
		Locations []location
	}{s, s.keys.url, moduleDir, modules, locations})
	if err != nil {
		return err
	}
	if err := os.Mkdir(s.Dir+"/files", 0o700); err != nil {
		return err
	}
	for _, l := range locations {
		if err := os.WriteFile(s.Dir+"/files/"+l.Path, []byte(`<!--#echo var="REMOTE_USER" -->`), 0o600); err != nil {
			return err
		}
	}
	return os.WriteFile(s.Dir+"/httpd.conf", []byte(text.String()), 0o600)
}
