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

	"github.com/taskcred/taskcred/credential/credentialtest"
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
	st := newStage(t, func(base http.RoundTripper) http.RoundTripper { return base })
	client := &http.Client{Transport: otelhttp.NewTransport(st.broker.Transport(st.scope, nil),
		otelhttp.WithTracerProvider(tracer), otelhttp.WithMeterProvider(meter), otelhttp.WithClientTrace(all))}
	ctx, span := tracer.Tracer("agent").Start(st.ctx, "step")
	st.call(t, ctx, client)
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
	st := newStage(t, func(base http.RoundTripper) http.RoundTripper {
		return otelhttp.NewTransport(base,
			otelhttp.WithTracerProvider(tracer), otelhttp.WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))),
			otelhttp.WithClientTrace(func(ctx context.Context) *httptrace.ClientTrace {
				return otelhttptrace.NewClientTrace(ctx, otelhttptrace.WithTracerProvider(tracer))
			}))
	})
	st.call(t, st.ctx, st.broker.Client(st.scope))
	if err := st.task.End(st.ctx); err != nil {
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
	credentialtest.NoReach(t, spans.GetSpans(), st.secrets...)
	credentialtest.NoReach(t, metrics, st.secrets...)
}
