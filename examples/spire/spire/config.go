//go:build unix

package spire

import (
	"os"
	"strings"
	"text/template"
	"time"
)

// The three configurations. What is short in them makes SPIRE quick to follow a
// change; everything listens on loopback, and everything that is kept lies in the
// folder that goes away with it.
//
// A key manager on disk lets server and agent start again as who they were.
var configs = template.Must(template.New("").Parse(`
{{define "server.conf"}}
server {
  bind_address = "127.0.0.1"
  bind_port = "{{.Port}}"
  socket_path = "{{.Dir}}/server/api.sock"
  trust_domain = "{{.TrustDomain}}"
  data_dir = "{{.Dir}}/server"
  log_level = "INFO"
  ca_key_type = "ec-p256"
  jwt_key_type = "ec-p256"
  ca_ttl = "24h"
  agent_ttl = "24h"
  default_x509_svid_ttl = "{{.X509TTL}}"
  default_jwt_svid_ttl = "{{.JWTTTL}}"
  jwt_issuer = "{{.Issuer}}"
  federation {
    bundle_endpoint {
      address = "127.0.0.1"
      port = {{.BundlePort}}
      refresh_hint = "5s"
      profile "https_spiffe" {}
    }
  }
  experimental { cache_reload_interval = "1s" }
}
plugins {
  DataStore "sql" {
    plugin_data {
      database_type = "sqlite3"
      connection_string = "{{.Dir}}/server/data.sqlite3"
    }
  }
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { keys_path = "{{.Dir}}/server/keys.json" } }
}
{{end}}
{{define "agent.conf"}}
agent {
  data_dir = "{{.Dir}}/agent"
  trust_domain = "{{.TrustDomain}}"
  server_address = "127.0.0.1"
  server_port = "{{.Port}}"
  socket_path = "{{.Dir}}/agent/api.sock"
  trust_bundle_path = "{{.Dir}}/bundle.pem"
  log_level = "INFO"
  experimental { sync_interval = "1s" }
}
plugins {
  NodeAttestor "join_token" { plugin_data {} }
  KeyManager "disk" { plugin_data { directory = "{{.Dir}}/agent" } }
  WorkloadAttestor "unix" { plugin_data {} }
}
{{end}}
{{define "oidc.conf"}}
log_level = "INFO"
domains = ["127.0.0.1"]
insecure_addr = "127.0.0.1:{{.OIDCPort}}"
allow_insecure_scheme = true
jwt_issuer = "{{.Issuer}}"
jwks_uri = "{{.Issuer}}/keys"
set_key_use = true
server_api {
  address = "unix://{{.Dir}}/server/api.sock"
  poll_interval = "1s"
}
{{end}}`))

// settings are what the configurations depend on.
type settings struct {
	Dir, TrustDomain, Issuer   string
	Port, BundlePort, OIDCPort int
	X509TTL, JWTTTL            time.Duration
}

// write puts one configuration into the folder and returns its path.
func (s settings) write(name string) (string, error) {
	var text strings.Builder
	if err := configs.ExecuteTemplate(&text, name, s); err != nil {
		return "", err
	}
	path := s.Dir + "/" + name
	return path, os.WriteFile(path, []byte(text.String()), 0o600)
}
