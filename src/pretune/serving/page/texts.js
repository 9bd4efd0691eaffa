// Every text of the page, in English and Chinese. `{name}` stands for a value, `{name|one|many}` for
// a number and the word after it.

const TEXTS = {
  // The frame.
  "model": ["Model", "模型"],
  "language": ["Language", "语言"],
  "theme": ["Colours", "配色"],
  "theme auto": ["◐ Auto", "◐ 自动"],
  "theme light": ["☀ Light", "☀ 浅色"],
  "theme dark": ["☾ Dark", "☾ 深色"],
  "api": ["API", "API"],
  "skip": ["Skip to the content", "跳到正文"],
  "views": ["What to do", "功能"],
  "loading": ["Loading …", "正在加载……"],
  "no models": ["No model is served here.", "这里没有模型。"],
  "again": ["Try again", "重试"],
  "facts": [" · {parameters} parameters", " · {parameters} 个参数"],
  "task classify": ["Classification", "分类"],
  "task multilabel": ["Several labels", "多标签分类"],
  "task regress": ["Score", "打分"],
  "task choose": ["Multiple choice", "多项选择"],
  "task tag": ["Entities", "实体识别"],
  "task answer": ["Question answering", "阅读理解"],
  "task mask_lm": ["Filling gaps", "填空"],
  "task causal_lm": ["Language model", "语言模型"],
  "task translate": ["Translation", "翻译"],
  "task summarize": ["Summarization", "摘要"],
  "task reward": ["Scores of replies", "回复打分"],
  "task chat": ["Chat", "对话"],
  "task instruct": ["Chat", "对话"],
  "task none": ["Embeddings", "向量"],

  // The key.
  "key title": ["This server asks for a key", "此服务需要密钥"],
  "key": ["API key", "API 密钥"],
  "key note": [
    "It is kept in this tab until you close it, and sent to this server only.",
    "密钥只保存在此标签页中，关闭即失效，并且只发送给此服务。"],
  "key use": ["Use it", "使用"],
  "key forget": ["Forget the key", "清除密钥"],

  // Work.
  "stop": ["Stop", "停止"],
  "working": ["Working …", "正在处理……"],
  "stopped": ["Stopped.", "已停止。"],
  "unreachable": [
    "The server cannot be reached. Does it still run?", "无法连接到服务。它还在运行吗？"],
  "cut off": ["The answer broke off: the server ended, or the connection did.",
    "回答中断：服务已结束，或连接已断开。"],
  "status": ["The server answered with status {status}.", "服务返回了状态 {status}。"],
  "more": ["{count} more", "其余 {count} 项"],
  "keys hint": ["Ctrl+Enter", "Ctrl+Enter"],
  "example": ["Example", "示例"],

  // Asking.
  "tab ask": ["Try it", "试用"],
  "go": ["Answer", "回答"],
  "column text": ["Text", "文本"],
  "column sentence1": ["First text", "第一段文本"],
  "column sentence2": ["Second text", "第二段文本"],
  "column question": ["Question", "问题"],
  "column context": ["Passage", "段落"],
  "column stem": ["Beginning of the answer", "答案的开头"],
  "column choices": ["Choices, one a line", "选项，每行一个"],
  "column tokens": ["Text", "文本"],
  "column source": ["Text to translate", "要翻译的文本"],
  "column document": ["Text to summarize", "要写摘要的文本"],
  "column messages": ["Prompt", "提示"],
  "column completion": ["Reply", "回复"],
  "gap": ["Add a gap", "插入空格"],
  "candidates": ["Alternatives", "候选数"],
  "answer": ["Answer", "答案"],
  "labels": ["Labels", "标签"],
  "no label": ["No label fits.", "没有合适的标签。"],
  "scores": ["Scores", "得分"],
  "score": ["Score", "得分"],
  "no entities": ["Nothing was found.", "没有找到实体。"],
  "legend": ["Legend", "图例"],
  "passage": ["In the passage", "在段落中"],
  "no answer": ["The passage does not hold the answer.", "段落中没有答案。"],
  "no answer share": ["No answer: {share}", "无答案：{share}"],
  "others": ["Other candidates", "其他候选"],
  "filled": ["Filled in", "填好的文本"],
  "gap number": ["Gap {number}", "第 {number} 个空"],
  "translation": ["Translation", "译文"],
  "summary": ["Summary", "摘要"],
  "alternatives": ["Alternatives", "其他译法"],
  "name perplexity": ["Perplexity", "困惑度"],
  "name log_probability": ["Log-probability (nats)", "对数概率（nat）"],
  "name tokens": ["Tokens", "词元数"],
  "name reply": ["Reply", "回复"],
  "name score": ["Score", "得分"],

  // Why.
  "why": ["Why?", "为什么？"],
  "words": ["What the answer comes from", "答案的依据"],
  "words note": [
    "Integrated gradients: how much each token speaks for or against this answer.",
    "积分梯度：每个词元对这个答案的支持或反对程度。"],
  "words sum": [
    "Together: {sum}. How sure the model is (as a rule, the log-probability): {value} for this text, {baseline} with a mask in the place of every token.",
    "合计：{sum}。模型的把握（通常是对数概率）：对这段文本为 {value}；把每个词元都换成掩码后为 {baseline}。"],
  "for": ["for", "支持"],
  "against": ["against", "反对"],
  "table": ["As a table", "以表格显示"],
  "token": ["Token", "词元"],
  "attribution": ["Attribution", "归因"],
  "attention": ["Attention", "注意力"],
  "attention note": [
    "Row: the token that looks. Column: what it looks at. Mean over the heads.",
    "行：正在关注的词元；列：被关注的词元。各注意力头取平均。"],
  "layer": ["Layer", "层"],
  "all layers": ["Mean of all", "全部平均"],
  "no attention": ["Maps are shown for texts of up to 64 tokens.", "只显示不超过 64 个词元的文本的注意力图。"],

  // Writing.
  "tab complete": ["Complete", "续写"],
  "tab chat": ["Chat", "对话"],
  "prompt": ["Text to continue", "要续写的文本"],
  "continue": ["Continue", "续写"],
  "send": ["Send", "发送"],
  "new chat": ["New chat", "新对话"],
  "message": ["Message", "消息"],
  "message hint": ["Enter sends, Shift+Enter begins a new line", "Enter 发送，Shift+Enter 换行"],
  "conversation": ["Conversation", "对话内容"],
  "you": ["You", "你"],
  "system": ["System message", "系统消息"],
  "settings": ["Sampling", "采样设置"],
  "temperature": ["Temperature", "温度"],
  "top_p": ["Top-p", "Top-p"],
  "top_k": ["Top-k", "Top-k"],
  "max_tokens": ["Most tokens", "最多词元数"],
  "seed": ["Seed", "随机种子"],
  "off": ["off", "不限"],
  "random": ["random", "随机"],
  "written stop": ["{count|token|tokens} in {seconds} s.", "{count} 个词元，{seconds} 秒。"],
  "written length": ["{count|token|tokens} in {seconds} s, as many as it may write.",
    "{count} 个词元，{seconds} 秒，已达到上限。"],

  // Nearest texts.
  "tab nearest": ["Nearest texts", "相近文本"],
  "texts": ["Texts, one a line", "文本，每行一条"],
  "query": ["Query", "查询"],
  "search": ["Search", "搜索"],
  "nearest note": ["By the cosine of the vectors ({size} numbers each).", "按向量（各 {size} 维）的余弦排序。"],
  "no texts": ["Give some texts, one a line, and a query.", "请输入若干文本（每行一条）和一个查询。"],
  "embedding": ["{done} of {all} texts …", "{all} 条文本，已完成 {done} 条……"],

  // Many at once.
  "tab batch": ["Many at once", "批量"],
  "batch note": [
    "Paste a table or texts, one a line, or drop a file: CSV, TSV or plain text. You get a CSV back with the answers.",
    "粘贴表格或文本（每行一条），或拖入 CSV、TSV、纯文本文件。得到的是带答案的 CSV。"],
  "batch texts": ["Table or texts", "表格或文本"],
  "batch file": ["Choose a file", "选择文件"],
  "batch drop": ["or drop it here", "或拖到这里"],
  "batch remove": ["Remove", "移除"],
  "format": ["Read as", "读作"],
  "format auto": ["Detect", "自动识别"],
  "format ,": ["CSV", "CSV"],
  "format tab": ["TSV", "TSV"],
  "format line": ["One text a line", "每行一条文本"],
  "header": ["The first row is the heading", "第一行是表头"],
  "column is": ["Column of “{name}”", "“{name}”所在的列"],
  "no column": [
    "No column is called “{name}”: check which is which, and whether the first row is the heading.",
    "没有名为“{name}”的列：请检查各列的对应关系，以及第一行是否为表头。"],
  "nameless": ["Column {number}", "第 {number} 列"],
  "run": ["Answer all", "全部回答"],
  "rows": ["{count|row|rows} to answer.", "共 {count} 行。"],
  "no rows": ["There is nothing to answer yet.", "还没有要回答的内容。"],
  "progress": ["{done} of {all} rows", "共 {all} 行，已完成 {done} 行"],
  "batch done": ["Done: {done|row|rows}, {failed} with an error.", "完成：{done} 行，其中 {failed} 行出错。"],
  "batch part": ["Stopped after {done} of {all} rows. The rest has no answer.", "共 {all} 行，在第 {done} 行后停止；其余没有答案。"],
  "download": ["Download CSV", "下载 CSV"],
  "first rows": ["The first {count|row|rows}", "前 {count} 行"],
  "error column": ["error", "错误"],

  // The card.
  "tab card": ["Model card", "模型卡片"],
  "no card": ["This model has no card. pretune card RUN writes one.", "这个模型没有卡片。pretune card RUN 可以生成。"],
  "fact name": ["Name", "名称"],
  "fact task": ["Task", "任务"],
  "fact model_type": ["Kind", "类型"],
  "fact parameters": ["Parameters", "参数量"],
  "fact context_length": ["Most tokens of a text", "文本的最大词元数"],
  "fact embedding_size": ["Numbers of a vector", "向量维数"],
  "fact labels": ["Labels", "标签"],
  "fact version": ["Version", "版本"],
  "fact step": ["Update of its run", "训练步数"],
  "fact digest": ["SHA-256 of its weights", "权重的 SHA-256"],
  "fact created": ["Loaded", "加载时间"],
};

/** Examples for the columns that tasks read. */
const EXAMPLES = {
  text: ["My parcel has not arrived yet, and nobody answers the phone.", "快递到现在还没送到，电话也没人接，太失望了。"],
  "text mask_lm": ["Paris is the [MASK] of France.", "北京是中国的[MASK]都。"],
  sentence1: ["A man is playing a guitar.", "一名男子在弹吉他。"],
  sentence2: ["Somebody makes music.", "有人在演奏音乐。"],
  question: ["Who wrote the letter?", "谁写了这封信？"],
  context: ["The letter was written by Ada Lovelace in 1843, and kept by her friend.", "这封信由艾达·洛芙莱斯写于1843年，由她的朋友保存。"],
  "context choose": ["She opened the piano and", "她打开了钢琴，"],
  choices: ["played a song.\nate it.", "弹了一首曲子。\n把它吃了。"],
  tokens: ["Ada Lovelace lived in London and wrote to Charles Babbage.", "艾达住在伦敦，常给查尔斯·巴贝奇写信。"],
  source: ["Good morning! How are you?", "早上好！你好吗？"],
  document: [
    "The library on Mill Street opens again on Monday. It was closed for two months, while the roof was mended and the reading room got new lamps. All books that were due meanwhile may be brought back until the end of March.",
    "磨坊街图书馆将于周一重新开放。图书馆闭馆两个月，期间修缮了屋顶，阅览室也换上了新灯。在此期间到期的图书可在三月底之前归还。"],
  messages: ["How do I reset my password?", "怎样重置密码？"],
  completion: ["Choose “Forgot password” on the sign-in page.", "在登录页点击“忘记密码”。"],
  prompt: ["Once upon a time", "从前，"],
  texts: [
    "Where is my parcel?\nI want my money back.\nHow do I change my password?\nThe weather is fine today.",
    "我的快递在哪里？\n我要退款。\n怎样修改密码？\n今天天气很好。"],
  query: ["My order has not arrived", "我的订单还没到"],
};

const PLACE = "pretune-language";
let chosen = stored() ?? (navigator.languages.find(name => /^(en|zh)\b/i.test(name)) ?? "en");
chosen = chosen.slice(0, 2).toLowerCase();

function stored() {
  try {
    return localStorage.getItem(PLACE);
  } catch {
    return null;  // the browser keeps nothing
  }
}

export const LANGUAGES = { en: "English", zh: "中文" };
export const language = () => chosen;

export function choose(name) {
  chosen = name;
  try {
    localStorage.setItem(PLACE, name);
  } catch { /* then it is chosen for this time */ }
}

const written = value => typeof value === "number" && Number.isFinite(value)
  ? value.toLocaleString(chosen) : String(value);

/** A text of ours; undefined where the key is none. */
export function text(key, values = {}) {
  const texts = Object.hasOwn(TEXTS, key) ? TEXTS[key] : null;
  return texts?.[chosen === "zh" ? 1 : 0].replace(/\{(\w+)(?:\|(\w+)\|(\w+))?\}/g,
    (_, name, single, several) => written(values[name]) +
      (single ? ` ${values[name] === 1 ? single : several}` : ""));
}

/** An example for a column of a task. */
export const example = (column, task) =>
  (EXAMPLES[`${column} ${task}`] ?? EXAMPLES[column] ?? EXAMPLES.text)[chosen === "zh" ? 1 : 0];
