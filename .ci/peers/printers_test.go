package peers

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/davecgh/go-spew/spew"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"gopkg.in/yaml.v3"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/identity"
	"github.com/taskcred/taskcred/identity/secret"
)

// foreign is a type of somebody who knows nothing of secrets.
type foreign struct {
	V any
	v any
}

// printers are how programs look at values: to debug, to tell why a test
// failed, to log, to write a configuration down.
var printers = map[string]func(v any) string{
	"spew": func(v any) string { return spew.Sdump(v) },
	"spew as testify has it": func(v any) string {
		return (&spew.ConfigState{Indent: " ", DisablePointerAddresses: true, DisableCapacities: true, SortKeys: true, DisableMethods: true, MaxDepth: 10}).Sdump(v)
	},
	"spew without methods": func(v any) string { return (&spew.ConfigState{Indent: " ", DisableMethods: true}).Sdump(v) },
	"cmp.Diff": func(v any) string {
		everything := cmp.Exporter(func(reflect.Type) bool { return true })
		return cmp.Diff([]any{v}, []any{}, everything) + cmp.Diff(any(v), any(nil), everything)
	},
	"zap": func(v any) string {
		return logged(func(w zapcore.WriteSyncer) {
			log := zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewDevelopmentEncoderConfig()), w, zap.DebugLevel))
			log.Info("m", zap.Any("any", v), zap.Reflect("reflect", v), zap.Dict("dict", zap.Any("any", v)))
			log.Sugar().Infow(fmt.Sprint(v), "k", v)
			console := zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(zap.NewDevelopmentEncoderConfig()), w, zap.DebugLevel))
			console.Info("m", zap.Any("any", v), zap.Reflect("reflect", v))
		})
	},
	"logrus": func(v any) string {
		return logged(func(w zapcore.WriteSyncer) {
			formatters := []logrus.Formatter{&logrus.TextFormatter{}}
			if _, err := json.Marshal(v); err == nil { // otherwise logrus writes to standard error, and nothing else
				formatters = append(formatters, &logrus.JSONFormatter{})
			}
			for _, f := range formatters {
				log := logrus.New()
				log.Out, log.Level, log.Formatter = w, logrus.TraceLevel, f
				log.WithField("k", v).Trace("m")
				log.WithFields(logrus.Fields{"k": v}).Info(v)
			}
		})
	},
	"yaml.v3": func(v any) string {
		var b bytes.Buffer
		err := yaml.NewEncoder(&b).Encode(v)
		return fmt.Sprint(b.String(), err)
	},
}

func logged(f func(zapcore.WriteSyncer)) string {
	var b bytes.Buffer
	f(zapcore.AddSync(&b))
	return b.String()
}

// printed returns what a printer makes of v, or panics with. Of a dump in hex the
// text is put together again.
func printed(print func(any) string, v any) (s string) {
	defer func() {
		if p := recover(); p != nil {
			s += fmt.Sprint(p)
		}
	}()
	s = print(v)
	var text strings.Builder
	for _, line := range dumped.FindAllStringSubmatch(s, -1) {
		text.WriteString(line[1])
	}
	return s + text.String()
}

// dumped is the right-hand column of a dump by encoding/hex.
var dumped = regexp.MustCompile(`(?m)\|(.{1,16})\|$`)

// No printer shows a secret, of any type of ours that could lead to one. Some
// read fields past methods and locks: in the bubble nothing is at work meanwhile.
func TestPrinters(t *testing.T) { synctest.Test(t, testPrinters) }

func testPrinters(t *testing.T) {
	st := newStage(t, func(base http.RoundTripper) http.RoundTripper { return base })
	client := st.broker.Client(st.scope)
	resp := st.call(t, st.ctx, client)
	c, err := st.broker.Credential(st.ctx, st.scope)
	if err != nil {
		t.Fatal(err)
	}
	_, outside := client.Get("http://127.0.0.1:3/")
	config, text := st.config, secret.New(st.secrets[0])
	config.Base = nil // the test's own
	values := map[string]any{
		"secret": text, "credential": c, "task": st.task, "context": st.ctx, "broker": st.broker, "ledger": st.broker.Ledger(),
		"leases": st.broker.Ledger().Leases(), "events": st.events, "client": client, "transport": client.Transport, "response": resp, "error": outside,
		"config": config, "issuer": st.issuer, "assertion": identity.Assertion{Token: text},
		"subject": identity.Subject{ID: "alice", Token: text}, "options": credential.TaskOptions{Subject: identity.Subject{ID: "alice", Token: text}},
		"token response": credential.TokenResponse{AccessToken: text, RefreshToken: text, Presented: []secret.Text{text}},
	}
	synctest.Wait()
	for how, print := range printers {
		for _, open := range []any{foreign{V: st.secrets[0]}, map[string]any{"k": st.secrets[0]}} {
			if !strings.Contains(printed(print, open), st.secrets[0]) {
				t.Errorf("%s does not show what is in the open", how)
			}
		}
		for what, v := range values {
			for in, x := range map[string]any{"": v, " by pointer": &v, " in a foreign struct": foreign{v, v}, " in a map": map[string]any{"k": v}} {
				var r recorder
				credentialtest.NoLeak(&r, printed(print, x), st.secrets...)
				if r.failed != "" {
					t.Errorf("%s of the %s%s: %s", how, what, in, r.failed)
				}
			}
		}
	}
	for _, how := range []string{"spew", "spew as testify has it", "spew without methods"} { // through net/http
		var r recorder
		if credentialtest.NoLeak(&r, printed(printers[how], st.config.Base), st.secrets...); r.failed == "" {
			t.Errorf("%s finds nothing in what connections buffer", how)
		}
	}
}

// recorder is a testing.TB that keeps what fails.
type recorder struct {
	testing.TB
	failed string
}

func (r *recorder) Helper()                           {}
func (r *recorder) Errorf(format string, args ...any) { r.failed += fmt.Sprintf(format, args...) }
