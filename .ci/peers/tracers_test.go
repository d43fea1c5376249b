package peers

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"

	"go.opentelemetry.io/contrib/instrumentation/net/http/httptrace/otelhttptrace"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/taskcred/taskcred/credential"
	"github.com/taskcred/taskcred/credential/credentialtest"
	"github.com/taskcred/taskcred/credential/exchange"
	"github.com/taskcred/taskcred/scope"
	"github.com/taskcred/taskcred/scope/policy"
)

// OpenTelemetry's client instrumentation above ours, told to redact nothing,
// shows the caller's headers and none of our secrets; not from the call, and not
// from the requests to the authorization server that it brings with it.
func TestTracersAboveUs(t *testing.T) {
	spans, reader := tracetest.NewInMemoryExporter(), metric.NewManualReader()
	tracer := trace.NewTracerProvider(trace.WithSyncer(spans))
	meter := metric.NewMeterProvider(metric.WithReader(reader))
	all := func(ctx context.Context) *httptrace.ClientTrace {
		return otelhttptrace.NewClientTrace(ctx, otelhttptrace.WithTracerProvider(tracer), otelhttptrace.WithInsecureHeaders())
	}
	st := newStage(t)
	client := &http.Client{Transport: otelhttp.NewTransport(st.broker.Transport(st.scope, nil),
		otelhttp.WithTracerProvider(tracer), otelhttp.WithMeterProvider(meter), otelhttp.WithClientTrace(all))}
	ctx, span := tracer.Tracer("agent").Start(st.ctx, "step")
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, st.scope.Any().Endpoint(), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Other", "shown")
	resp, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil {
		t.Fatal(err)
	}
	traced := httptrace.WithClientTrace(ctx, all(ctx))
	st.call(t, traced, st.broker.Client(st.scope))
	if _, err := st.issuer.Introspect(context.WithoutCancel(traced), st.config.ClientSecret); err != nil {
		t.Error(err)
	}
	if err := st.task.End(traced); err != nil {
		t.Error(err)
	}
	span.End()
	checkTelemetry(t, st, spans, reader)
	if text := fmt.Sprintf("%+v", spans.GetSpans()); !strings.Contains(text, "http.request.header.x-other") {
		t.Error("no header is traced at all")
	}
}

// The same below us, as the base of broker and issuer, as it is by default.
func TestTracersBelowUs(t *testing.T) {
	spans, reader := tracetest.NewInMemoryExporter(), metric.NewManualReader()
	tracer := trace.NewTracerProvider(trace.WithSyncer(spans))
	base := otelhttp.NewTransport(&http.Transport{}, otelhttp.WithTracerProvider(tracer), otelhttp.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))),
		otelhttp.WithClientTrace(func(ctx context.Context) *httptrace.ClientTrace {
			return otelhttptrace.NewClientTrace(ctx, otelhttptrace.WithTracerProvider(tracer))
		}))
	st := newStage(t)
	st.config.Base = base
	issuer, err := exchange.New[scope.Tool](st.config)
	if err != nil {
		t.Fatal(err)
	}
	broker, err := credential.NewBroker(issuer, &credential.BrokerOptions{Policy: policy.AllowAll(), Base: base})
	if err != nil {
		t.Fatal(err)
	}
	st.call(t, st.ctx, broker.Client(st.scope))
	if err := st.task.End(st.ctx); err != nil {
		t.Error(err)
	}
	if err := broker.Close(); err != nil {
		t.Error(err)
	}
	checkTelemetry(t, st, spans, reader)
}

// checkTelemetry looks for secrets in all that was recorded.
func checkTelemetry(t *testing.T, st *stage, spans *tracetest.InMemoryExporter, reader metric.Reader) {
	t.Helper()
	var metrics metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &metrics); err != nil {
		t.Fatal(err)
	}
	if n := len(spans.GetSpans()); n < 3 || len(metrics.ScopeMetrics) == 0 {
		t.Errorf("%d spans, %d scopes of metrics: nothing was recorded", n, len(metrics.ScopeMetrics))
	}
	for _, v := range []any{spans.GetSpans(), metrics} {
		credentialtest.NoLeak(t, v, st.secrets...)
		credentialtest.NoReach(t, v, st.secrets...)
	}
}
