// An OAuth 2.0 authorization server from oidc-provider, with the two things that
// it leaves to its user: recognising a workload by its SPIFFE identity, and token
// exchange (RFC 8693). Whatever else happens, oidc-provider does.
//
//   node server.mjs config.json
//
// config.json is authz.Config. It prints one line, {"issuer": …}, when it answers.
// It listens on loopback and keeps everything in memory.
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import http from 'node:http';
import https from 'node:https';
import { text } from 'node:stream/consumers';

import { createRemoteJWKSet, decodeJwt, jwtVerify } from 'jose';
import Provider, { errors } from 'oidc-provider';
import * as grants from 'oidc-provider/lib/helpers/grants.js';

const EXCHANGE = 'urn:ietf:params:oauth:grant-type:token-exchange';
const JWT_SPIFFE = 'urn:ietf:params:oauth:client-assertion-type:jwt-spiffe';
const ACCESS_TOKEN = 'urn:ietf:params:oauth:token-type:access_token';
const JWT = 'urn:ietf:params:oauth:token-type:jwt';

const config = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const clients = new Map(config.clients.map((c) => [c.id, c]));
const resources = new Map(config.resources.map((r) => [r.uri, r]));

// Keys are fetched anew every few seconds, and at once for one that is not known:
// a trust domain rotates its own, and may take one back.
const keys = (url) => createRemoteJWKSet(new URL(url), { cacheMaxAge: 5_000, cooldownDuration: 1_000 });
const trustDomains = new Map(Object.entries(config.trustDomains).map(([name, url]) => [name, keys(url)]));
const users = config.users.jwks && keys(config.users.jwks);

const certified = config.tls && { cert: readFileSync(config.tls.cert), key: readFileSync(config.tls.key) };
const server = await listen(certified ? https.createServer(certified) : http.createServer());
const issuer = `${certified ? 'https' : 'http'}://127.0.0.1:${server.address().port}`;

// A second listener, for clients that prove themselves by an X.509-SVID. It lets
// others in as well: oidc-provider says what is wrong, as an OAuth error.
const mutual = certified && await listen(https.createServer({
  ...certified,
  ca: readFileSync(config.tls.clients),
  requestCert: true,
  rejectUnauthorized: false,
}));
const mutualOrigin = mutual && `https://127.0.0.1:${mutual.address().port}`;

// verify returns who a JWT names, which must have been made for this server and
// nobody else: a workload for its JWT-SVID, a user for the identity provider's.
async function verify(jwt) {
  const { sub, aud } = decodeJwt(jwt);
  const domain = /^spiffe:\/\/([^/]+)\/./.exec(sub)?.[1];
  const by = domain ? trustDomains.get(domain) : users;
  if (!by) throw new Error(domain ? `the trust domain ${domain} is not configured` : 'no users are configured');
  if ([aud].flat().length !== 1) throw new Error('the JWT is for more than one audience');
  await jwtVerify(jwt, by, {
    audience: issuer,
    issuer: domain ? undefined : config.users.issuer, // the iss of a JWT-SVID says nothing
    requiredClaims: ['sub', 'exp'],
  });
  return sub;
}

const secret = randomBytes(32).toString('base64url'); // never leaves this process
const { privateKey } = generateKeyPairSync('ec', { namedCurve: 'P-256' });

const provider = new Provider(issuer, {
  jwks: { keys: [{ ...privateKey.export({ format: 'jwk' }), alg: 'ES256', use: 'sig', kid: 'main' }] },
  clients: config.clients.map((c) => ({
    client_id: c.id,
    grant_types: ['client_credentials', EXCHANGE],
    redirect_uris: [],
    response_types: [],
    dpop_bound_access_tokens: Boolean(c.dpopBound),
    tls_client_certificate_bound_access_tokens: Boolean(c.certificateBound),
    ...(c.x509
      ? { token_endpoint_auth_method: 'tls_client_auth', tls_client_auth_san_uri: c.id }
      : { token_endpoint_auth_method: 'client_secret_post', client_secret: secret }),
  })),
  clientAuthMethods: ['client_secret_post', 'private_key_jwt', 'tls_client_auth'],
  clientDefaults: { id_token_signed_response_alg: 'ES256' },
  discovery: mutual && { // RFC 8705 section 5
    mtls_endpoint_aliases: {
      token_endpoint: `${mutualOrigin}/token`,
      introspection_endpoint: `${mutualOrigin}/token/introspection`,
      revocation_endpoint: `${mutualOrigin}/token/revocation`,
      userinfo_endpoint: `${mutualOrigin}/me`,
    },
  },
  ttl: { AccessToken: (ctx, token) => token.resourceServer?.accessTokenTTL ?? 60 },
  findAccount: (ctx, id) => ({ accountId: id, claims: () => ({ sub: id }) }),
  extraTokenClaims: (ctx) => (ctx.actor ? { act: ctx.actor } : undefined),
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    revocation: { enabled: true },
    introspection: {
      enabled: true,
      allowedPolicy: (ctx, client, token) => [token.clientId, resources.get(token.aud)?.server].includes(client.clientId),
    },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo(ctx, uri, client) {
        const r = resources.get(uri);
        if (!r?.clients.includes(client.clientId)) throw new errors.InvalidTarget();
        return {
          scope: r.scopes.join(' '),
          audience: r.uri,
          accessTokenTTL: r.seconds,
          accessTokenFormat: r.jwt ? 'jwt' : 'opaque',
          jwt: r.jwt ? { sign: { alg: 'ES256' } } : undefined,
        };
      },
    },
    dPoP: {
      enabled: true,
      nonceSecret: config.dpopNonces ? randomBytes(32) : undefined,
      requireNonce: () => Boolean(config.dpopNonces),
    },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      certificateBoundAccessTokens: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate?.(),
      certificateAuthorized: (ctx) => ctx.socket.authorized === true,
      certificateSubjectMatches: (ctx, property, expected) => property === 'tls_client_auth_san_uri'
        && ctx.socket.getPeerX509Certificate().subjectAltName === `URI:${expected}`,
    },
  },
});

// oidc-provider knows no jwt-spiffe. A client that proves itself that way is let
// in with the secret that it has not got and only this process knows. Where a
// token exchange comes without any client authentication, a JWT-SVID as its
// subject is proof enough.
provider.use(async (ctx, next) => {
  if (ctx.method !== 'POST') return next();
  const form = new URLSearchParams(await text(ctx.req));
  let svid;
  if (form.get('client_assertion_type') === JWT_SPIFFE) svid = form.get('client_assertion');
  else if (form.get('grant_type') === EXCHANGE && form.get('subject_token_type') === JWT
    && !['client_id', 'client_assertion'].some((p) => form.has(p))) svid = form.get('subject_token');
  if (svid) {
    try {
      const id = await verify(svid);
      if (!clients.has(id) || clients.get(id).x509) throw new Error(`${id} is no client with a JWT-SVID`);
      if (form.has('client_id') && form.get('client_id') !== id) throw new Error('client_id is another client');
      ['client_assertion', 'client_assertion_type'].forEach((p) => form.delete(p));
      form.set('client_id', id);
      form.set('client_secret', secret);
    } catch (err) {
      ctx.status = 401;
      ctx.body = { error: 'invalid_client', error_description: err.message };
      return undefined;
    }
  }
  ctx.req.body = form.toString();
  return next();
});

// identify returns who a subject_token or actor_token names, and who acts for
// them already.
async function identify(token, type) {
  try {
    switch (type) {
      case JWT: return { sub: await verify(token) };
      case ACCESS_TOKEN: {
        const found = await provider.AccessToken.find(token);
        if (found) return { sub: found.accountId, act: found.extra?.act };
      }
    }
  } catch (cause) {
    throw new errors.InvalidRequest(`the token is not valid: ${cause.message}`); // RFC 8693 section 2.2.2
  }
  throw new errors.InvalidRequest('the token is not known, or not of a type that is taken here');
}

provider.registerGrantType(EXCHANGE, async (ctx) => {
  const { client, params } = ctx.oidc;
  const dPoP = await grants.validateDpop(provider, ctx);
  if ((params.requested_token_type ?? ACCESS_TOKEN) !== ACCESS_TOKEN) throw new errors.InvalidRequest('only access tokens are issued');

  const subject = await identify(params.subject_token, params.subject_token_type);
  if (params.actor_token) {
    const actor = await identify(params.actor_token, params.actor_token_type);
    if (actor.sub !== client.clientId) throw new errors.InvalidRequest('the actor is not the client');
    ctx.actor = { sub: actor.sub, act: subject.act };
  }
  if (subject.sub !== client.clientId && !clients.get(client.clientId).mayActFor) throw new errors.UnauthorizedClient();

  const [resourceServer, ...others] = await grants.resolveRequestedResources(provider, ctx);
  const scopes = [...ctx.oidc.requestParamScopes];
  let grantId;
  if (!resourceServer && scopes.join() === 'openid') {
    // The one resource of this server's own is userinfo, which looks up what the
    // user has agreed to.
    const grant = new provider.Grant({ accountId: subject.sub, clientId: client.clientId });
    grant.addOIDCScope('openid');
    grantId = await grant.save();
  } else {
    if (!resourceServer || others.length) throw new errors.InvalidTarget('exactly one resource must be asked for');
    const unknown = scopes.find((s) => !resourceServer.scopes.has(s));
    if (unknown) throw new errors.InvalidScope('the resource has no such scope', unknown);
  }

  const token = new provider.AccessToken({ accountId: subject.sub, client, grantId, resourceServer, scope: scopes.join(' ') || undefined });
  const cert = grants.checkMtlsCert(provider, ctx);
  if (cert) token.setThumbprint('x5t', cert);
  grants.checkDpopRequired(provider, ctx, dPoP);
  if (dPoP) {
    await grants.checkDpopReplay(provider, ctx, dPoP, client.clientId);
    token.setThumbprint('jkt', dPoP.thumbprint);
  }
  const accessToken = await token.save();
  ctx.body = grants.buildTokenResponse(provider, {
    accessToken,
    issuedTokenType: ACCESS_TOKEN,
    expiresIn: token.expiration,
    scope: token.scope,
    // As others do it: lower case (RFC 6749 section 5.1 leaves that open), with
    // members that nobody asked for.
    tokenType: token.tokenType.toLowerCase(),
    parameters: { 'not-before-policy': 0, session_state: '' },
  });
}, ['subject_token', 'subject_token_type', 'actor_token', 'actor_token_type', 'requested_token_type', 'resource', 'audience', 'scope'], ['resource', 'audience']);

for (const s of [server, mutual]) s?.on('request', provider.callback());
console.log(JSON.stringify({ issuer }));

function listen(s) {
  return new Promise((resolve, reject) => {
    s.once('error', reject).listen(0, '127.0.0.1', () => resolve(s));
  });
}
